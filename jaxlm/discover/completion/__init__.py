"""What a shell needs to complete commands and flags."""
