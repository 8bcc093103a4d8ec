"""Who is still classified correctly, and the evidence for it: from the questions before an attack to the ledger."""
