"""The demo model: data, training, evaluation."""
