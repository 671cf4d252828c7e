"""What every run shares, whatever it trains: its settings, restoring, recording, saving. Knows no loss and no data."""
