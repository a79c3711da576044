"""A study and its trials: settings, storage, sampler, front, and what comes before and after training."""
