"""Lightning modules for supervised fine-tuning and K-negative DPO, and the loop they share."""
