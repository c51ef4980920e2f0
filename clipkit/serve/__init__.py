"""`clipkit serve INDEX`: a page to search and classify in, and the same as an HTTP interface."""
