"""Bridges to other libraries. Each file imports the library it is named after; nothing imports them unasked."""
