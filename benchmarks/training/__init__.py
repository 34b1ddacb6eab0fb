"""Training throughput against PEFT and `transformers.Trainer`."""
