"""Fine-tuning: labelled examples, their features and heads, decoding and scores."""
