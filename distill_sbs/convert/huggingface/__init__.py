"""HuggingFace's T5 folders: names of tensors, weights, tokenizer, files."""
