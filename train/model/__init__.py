"""The model: loading, attention that keeps packed documents apart, and the proof of it."""
