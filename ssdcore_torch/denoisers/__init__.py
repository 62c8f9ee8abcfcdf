"""Networks that predict clean images."""
