"""What layers keep for the backward pass, and what they compute again."""
