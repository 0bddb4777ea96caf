"""What is shown of single images: the candidates that NMS chooses from, and pictures of what it kept and dropped."""
