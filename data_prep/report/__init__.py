"""report.html and report.json: what preparation made of the data, in numbers and as a page."""
