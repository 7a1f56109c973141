"""Exports to and imports from Hugging Face folders and ONNX, and verifies equal outputs.

Not for: the published names of parameters (`dist_bert.model`).
Scripts use `export_pretrained.export`, `export_finetuned.export_finetuned` and
`import_model.import_model`.
"""
