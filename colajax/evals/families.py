"""What the models that write are called in files, tables and figures, by the stage of their runs."""

FAMILIES = {"joint": "cola", "ar": "ar", "llada": "llada"}
