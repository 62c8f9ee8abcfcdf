"""The commands: arguments, one call, printing. `python -m ssdcore_torch.train` and the others run them."""
