"""What can be set, by the part of the worker that gets it; `schemas.settings` reads it."""
