"""Networks out: compact artefact, dense state dict, ONNX."""
