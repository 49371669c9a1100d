"""What claims may measure of inpainting."""
