"""The networks, one paper a file; `resnext.catalog` finds them here."""
