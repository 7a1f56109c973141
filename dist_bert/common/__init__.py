"""Tools that every part uses: settings, files, hashes, errors, what this machine is.

Not for: anything about models, data or training; no torch at import.
Others mostly use `settings.resolve`, `files.whole_path`, `errors.UserError` and `cli.run`.
"""
