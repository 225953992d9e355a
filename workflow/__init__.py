"""What `make book` runs: the chapters, their records and the pages, as a Snakemake workflow."""
