"""How pocket was made and how good it is; not part of the installed package."""
