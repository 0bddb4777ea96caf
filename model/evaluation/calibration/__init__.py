"""What scores are worth as estimates: outcomes says what becomes of each detection, errors how far its score is off."""
