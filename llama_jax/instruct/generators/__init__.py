"""Who answers requests: a model on this machine, or an endpoint; and the answers that were given before."""
