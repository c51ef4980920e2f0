"""`clipkit dedup VECTORS` and `clipkit cluster VECTORS`: rows that belong together, and selections of them."""
