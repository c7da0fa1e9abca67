"""What reading and writing checkpoints can meet. Every message names the file and what to do."""


class CheckpointError(RuntimeError):
  """A step could not be written or read; the message says which, why, and what is still good."""


class CheckpointFileError(ValueError):
  """A file that is missing, damaged or of another kind. The message names it."""


class WeightsError(ValueError):
  """Names, shapes or number types of a checkpoint that do not fit the model.

  The message lists every one of them.
  """
