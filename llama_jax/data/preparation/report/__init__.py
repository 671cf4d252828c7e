"""What a preparation did to a corpus, counted, sampled and shown: the funnel from what was read to what was kept."""
