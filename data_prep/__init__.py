"""Raw instruction data -> packed, pre-tokenized shards. A folder imports only what stands below it here.

prepare.py, inspect_shards.py, diff_shards.py   entries
stages/         the job, tokenize -> plan -> pack -> finish, parts, the pool of workers
report/         report.html and report.json
sources/        bytes -> rows -> Conversation: input files, plain copies, encodings, forms of files and of rows
mixture/        duplicates, eval split, shares, packing, on plain arrays
recipe.py       Recipe and Source: everything that decides the bytes
rendering/      Conversation -> ids and labels: where a mask is made
quality/        filters, personal data, near duplicates, overlap with evaluation texts, language, task type
tokenization/   text -> ids and offsets, the faster encoder and its proof
shards.py       the contract with train: the manifest's type, shards written, read and verified
conversation.py, strict_files.py, atomic_files.py   the text type, YAML and JSON readers, files whole or not there
"""
