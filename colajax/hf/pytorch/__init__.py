"""The PyTorch classes that an export carries: plain torch and transformers, copied as they are beside the weights."""
