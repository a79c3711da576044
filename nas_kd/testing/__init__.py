"""What tests and benchmarks share: fake meters with exact clocks, a study that takes seconds."""
