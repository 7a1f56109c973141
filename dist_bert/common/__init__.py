"""Shared tools: settings, files, hashes, errors, facts about this machine.

Not for: anything about models, data or training; no torch at import.
Others mostly use `settings.resolve`, `files.whole_path`, `errors.UserError` and `cli.run`.
"""
