"""The words that everybody speaks: errors, types, tables of names, documents, settings, seeds."""
