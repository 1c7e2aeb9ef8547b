"""Azure ML: code, environment, data and command of a run become a job; the SDK is imported only when one is made."""
