"""What is measured on a device: energy, latency, memory; and who may use it meanwhile."""
