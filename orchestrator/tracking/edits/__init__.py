"""What people change in MLflow by hand: experiments that are renamed or deleted, and tags of runs."""
