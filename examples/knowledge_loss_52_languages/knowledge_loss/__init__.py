"""What causes knowledge loss over 52 languages: a study from training to the written answer."""
