"""What goes to the Hugging Face Hub: heads, models and their cards, and the pins of the published files."""
