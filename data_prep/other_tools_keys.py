"""Keys of Axolotl, LLaMA-Factory and ms-swift, and what to write here instead: hints for whoever comes from there."""

from __future__ import annotations

LLAMA_FACTORY_COLUMNS = {
    "prompt": ("instruction", "question"),
    "query": ("input", "question", "prompt"),
    "response": ("output", "answer", "completion"),
    "messages": ("conversations",),
    "conversations": ("messages",),
}
OTHERS_SOURCE_KEYS = {
    **dict.fromkeys(("type", "formatting", "conversation", "prompt_style"), "`form` says how a row reads"),
    **dict.fromkeys(("ds_type", "input_format", "file_type"), "`format` says what kind of file it is"),
    **dict.fromkeys(("data_files", "file_name", "folder"), "`path` names the files"),
    **dict.fromkeys(("hf_hub_url", "ms_hub_url", "repo_id"), "`dataset` is the hub id"),
    **dict.fromkeys(("field_messages", "messages_column"), "write `columns: {messages: COLUMN}`"),
    **dict.fromkeys(("field_system", "system_column"), "write `columns: {system: COLUMN}`"),
    **dict.fromkeys(("field_tools", "tools_column"), "write `columns: {tools: COLUMN}`"),
    "field_instruction": "write `columns: {instruction: COLUMN}`",
    "field_input": "write `columns: {input: COLUMN}`",
    "field_output": "write `columns: {output: COLUMN}`",
    **dict.fromkeys(("field_human", "field_model"), "write `message_keys: {user: KEY, assistant: KEY}`"),
    **dict.fromkeys(
        ("message_property_mappings", "message_field_role", "message_field_content", "tags", "role_tag", "content_tag"),
        "write `message_keys: {role: KEY, content: KEY}`, and `roles: {NAME: user}` for names of roles",
    ),
    **dict.fromkeys(("field_thinking", "template_thinking_key"), "write `message_keys: {reasoning: KEY}`"),
    **dict.fromkeys(("message_field_training", "message_field_training_detail"), "write `message_keys: {train: KEY}`"),
    **dict.fromkeys(
        ("roles_to_train", "train_on_eos", "train_on_inputs", "mask_history"), "see the recipe's `train_on`"
    ),
    **dict.fromkeys(
        ("shards", "num_samples", "dataset_sample"), "`first` reads the first rows, `take` uses some of them"
    ),
    "chat_template": "it belongs to the recipe, not to one source",
    **dict.fromkeys(("ranking", "rlhf"), "only supervised fine-tuning is prepared; see `form: prompt_completion`"),
    **dict.fromkeys(("preprocess", "input_transform", "map_function"), "write `transform: package.module:function`"),
}
OTHERS_RECIPE_KEYS = {
    **dict.fromkeys(("datasets", "dataset", "dataset_dir", "data"), "write `sources`, a list"),
    **dict.fromkeys(
        ("sequence_len", "cutoff_len", "max_length", "max_seq_length", "model_max_length"), "write `seq_len`"
    ),
    **dict.fromkeys(("val_set_size", "val_size", "split_dataset_ratio"), "write `eval_fraction`"),
    **dict.fromkeys(("base_model", "model_name_or_path", "tokenizer_config"), "write `tokenizer`"),
    "template": "write `chat_template`",
    **dict.fromkeys(("sample_packing", "packing", "neat_packing"), "rows are always packed, and documents isolated"),
    **dict.fromkeys(("train_on_inputs", "train_on_prompt", "mask_history", "roles_to_train"), "see `train_on`"),
    **dict.fromkeys(("dataset_prepared_path", "tokenized_path", "output_dir"), "the command takes `--output`"),
    **dict.fromkeys(("interleave_probs", "mix_strategy", "interleave_prob"), "give each source a `weight`"),
    "dataset_exact_deduplication": "write `deduplicate`",
}
