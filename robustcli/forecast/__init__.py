"""What a spec would cost, found by a few real updates and a few real batches of every evaluation."""
