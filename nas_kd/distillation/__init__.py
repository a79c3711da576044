"""The loss, and one training run."""
