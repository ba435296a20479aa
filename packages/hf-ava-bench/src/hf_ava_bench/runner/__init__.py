"""Tower, connector, language model: the parts of the package that need the extra `runner`. Imported when asked for."""
