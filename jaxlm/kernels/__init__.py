"""Hot operations, one folder each: the definition (reference.py), fast forms, one public function."""
