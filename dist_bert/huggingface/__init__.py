"""Exports to and imports from Hugging Face folders and ONNX, and verifies equal outputs.

Not for: the parameters' published names, which `dist_bert.model` has.
Scripts use `export_run` and `import_model.import_model`.
"""
