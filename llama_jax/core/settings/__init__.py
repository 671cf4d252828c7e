"""From YAML files and a command line to a frozen dataclass. Does not know which settings there are."""
