"""To and from Hugging Face folders and ONNX, checked against what the model computes here.

Not for: the parameters' published names, which `dist_bert.model` has.
Scripts use `export_run` and `import_model.import_model`.
"""
