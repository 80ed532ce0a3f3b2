"""Training on packed shards. Entry points are the files at the top; a folder imports only folders below it here.

checks/      what can be wrong before a GPU is held (no torch)
loop/        trainer, the loss, data, evaluation, metrics, bad steps, W&B
model/       loading, attention, the proof that packed documents are isolated
tracing/     the documents of a step, the steps of a document
serving/     exported weights and tokenizer, a model that answers
checkpoint/  saving, publishing, resume, another world size
config/      run config, library options, refusals, step arithmetic
run/         processes, atomic files, run.json, signals, watchdog
"""
