"""Problems with answers, one file per task, and what turns them into batches (`base.py`)."""
