"""What is fetched from the Hugging Face Hub, and what is said when that fails."""
