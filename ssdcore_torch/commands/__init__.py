"""The commands: arguments, one call, printing. `python -m ssdcore_torch.train` and its like run them."""
