"""What an evaluation leaves as files: detections and matches as Parquet, AP and curves of each class as JSON."""
