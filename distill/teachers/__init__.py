"""Teachers: where their answers come from, how they are fine-tuned, stored and computed live."""
